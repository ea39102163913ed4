"""What is replaced for a while is afterwards as it was, also for a class that only inherits it."""

from __future__ import annotations

import pytest

from sherry_gguf.checkpoint.replaced import replaced


class Base:
    @classmethod
    def name(cls):
        return cls.__name__


class Derived(Base):
    pass


def fail_with_another(owner):
    with replaced(owner, "name", lambda: "another"):
        raise KeyError(owner.name())


@pytest.mark.parametrize("owner", [Base, Derived])
def test_what_was_there_comes_back(owner):
    before = dict(vars(owner))
    with pytest.raises(KeyError, match="another"):
        fail_with_another(owner)
    assert dict(vars(owner)) == before
    assert (Base.name(), Derived.name()) == ("Base", "Derived")
