from hypothesis import settings

pytest_plugins = ["tests.stack"]

# Times mean nothing on shared machines.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
