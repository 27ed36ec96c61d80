"""HTTP server in the style of OpenAI's, and its playground."""
