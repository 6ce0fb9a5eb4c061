"""What the live database is made of, and with what it is compared: the models, another database, what was recorded."""
