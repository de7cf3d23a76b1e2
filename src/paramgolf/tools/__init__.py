"""Commands over runs and artifacts; each is thin."""
