"""`curtail report`: a run as one HTML page, as JSON or as PNG files."""
