"""Contract suites for those who write adapters: subclass one, give it the fixtures it asks for, and run pytest."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.formats")  # so that a failure shows both values
