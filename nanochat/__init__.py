"""The model, its optimizer, data and evaluation; independent of sites, HTTP and carbon."""
