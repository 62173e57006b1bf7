from tests.fixtures import captured_once, own_registry, seeded  # noqa: F401
