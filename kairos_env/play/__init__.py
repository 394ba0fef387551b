"""The drive through imagination: `session` is the drive (moments, undo, futures), `server` carries it over HTTP."""
