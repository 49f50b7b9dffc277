"""`curtail report`: writes a report of a run as an HTML page, as JSON and as PNG files."""
