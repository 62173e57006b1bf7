from tests.fixtures import captured_once, seeded  # noqa: F401
