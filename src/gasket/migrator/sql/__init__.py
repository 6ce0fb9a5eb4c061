"""SQL as text: revisions rendered to statements, and statements read for what they do."""
