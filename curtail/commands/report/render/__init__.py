"""HTML page, tables and charts of a report, from its figures."""
