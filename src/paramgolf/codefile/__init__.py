"""How the modules become the one code file: joined, stripped, shortened, coded."""
