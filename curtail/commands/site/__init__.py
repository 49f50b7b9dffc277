"""`curtail site`: sites whose machines come and go with their windows."""
