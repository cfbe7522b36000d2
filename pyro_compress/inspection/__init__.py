"""Looking at a posterior: numbers, pictures, pages."""
