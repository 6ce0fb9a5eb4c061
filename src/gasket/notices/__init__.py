"""People are told what has happened: signed messages to the URL of the setting GASKET_WEBHOOK_URL."""
