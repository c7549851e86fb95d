"""The page of `mim3d view`: its own files, and NiiVue as it was published."""
