"""The tree of exceptions, as it is drawn."""

import inspect
import re

from secateur import errors


def test_the_drawing_has_every_error_under_its_base() -> None:
    drawn, above = {}, ["SecateurError"]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│ ]*)[├└]── (\w+) +\w", line)
        if found:
            depth = len(found[1]) // 4 + 1
            drawn[found[2]] = above[depth - 1]
            above[depth:] = [found[2]]
    real = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if name != "SecateurError"}

    assert drawn == {name: kind.__base__.__name__ for name, kind in real.items()}
