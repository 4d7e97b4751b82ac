"""Programs that carry a potential beyond one Python process; each is imported only where it is used."""
