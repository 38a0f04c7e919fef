"""Every command's signature: names, options and help. What a command does is imported when it is called."""
