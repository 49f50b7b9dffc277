"""Pictures: SVG charts, HTML pages and PNG files; knows nothing of runs."""
