"""Image sets: tensorflow-datasets, embedded photographs, folders, arrays, noise."""
