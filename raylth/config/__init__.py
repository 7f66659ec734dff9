"""Every setting of a sweep, typed, with its unit and source; and how a sweep file is read."""
