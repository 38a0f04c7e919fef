"""How answers become a training signal: pairs and losses, as published."""
