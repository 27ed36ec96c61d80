"""Files of prompts in, files of answers out, however many: in parts, resumable, each line exactly once."""
