"""Drawing: SVG charts, HTML pages and PNG files, independent of runs."""
