"""What stands for the config of a model of which nothing else is needed."""

import pytest

from minitron_nas.errors import TeacherNotFoundError
from minitron_nas.models.config_alone import config_alone


@pytest.mark.parametrize("source", ["nowhere", "~no_such_user/model"])
def test_what_is_no_folder_hub_name_or_type_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(TeacherNotFoundError, match=r"no hub name \(owner/name\), and no model type") as refused:
        config_alone(source)
    assert "\n" not in str(refused.value)
