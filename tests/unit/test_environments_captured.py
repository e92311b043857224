from __future__ import annotations

import pytest

from mlpacker.environments.captured import agrees, distributions_for, imports, least, pins, strangers
from mlpacker.environments.interpreters import Distribution, Installed
from mlpacker.errors import BadDescription

TRAINING = Installed(
    {
        "scikit-learn": Distribution("scikit-learn", "1.2.2", ("sklearn",)),
        "pandas": Distribution("pandas", "1.5.3", ("pandas",)),
        "mine": Distribution("mine", "0.1", ("ore",), origin="editable", source="file:///home/me/mine"),
        "opencv-python": Distribution("opencv-python", "4.7.0.72", ("cv2",)),
    }
)


def test_imports_are_found_wherever_they_stand_in_the_code():
    code = """
import os, numpy.linalg as la
from sklearn.ensemble import RandomForestClassifier
from . import beside
from .deeper import thing
def f():
    try:
        import pandas
    except ImportError:
        pass
"""
    assert imports(code) == {"numpy", "sklearn", "pandas"}


def test_code_that_can_not_be_read_is_named_as_such():
    with pytest.raises(BadDescription, match="can't be read"):
        imports("def f(:")


def test_modules_become_the_distributions_of_the_training_interpreter():
    assert distributions_for({"sklearn.svm", "ore", "json"}, TRAINING) == ("mine", "scikit-learn")


def test_modules_that_no_interpreter_has_become_well_known_distributions():
    assert distributions_for({"yaml", "PIL.Image", "cv2", "xgboost"}, None) == (
        "opencv-python-headless",
        "pillow",
        "pyyaml",
        "xgboost",
    )


def test_the_standard_library_main_and_our_own_modules_need_nothing():
    assert distributions_for({"os.path", "__main__", "_codecs", "mlpacker_runtime", "distutils"}, None) == ()


def test_what_the_model_file_says_comes_first():
    assert pins({"scikit_learn": "1.2.2"}, mlmodel=["scikit-learn==1.3.0"]) == ("scikit-learn==1.2.2",)


def test_a_requirement_that_contradicts_the_model_file_is_an_error():
    with pytest.raises(
        BadDescription, match=r"contradicts the model file, which was written with scikit-learn 1.2.2"
    ):
        pins({"scikit-learn": "1.2.2"}, user=["scikit-learn>=1.3"])


def test_a_requirement_that_allows_the_models_version_is_narrowed_to_it():
    assert pins({"scikit-learn": "1.2.2"}, user=["scikit-learn[tests]>=1.0"]) == (
        "scikit-learn[tests]==1.2.2",
    )


def test_the_users_requirement_comes_before_the_mlmodels():
    assert pins({}, user=["pandas==2.0.0"], mlmodel=["pandas==1.5.3", "scipy==1.10.1"]) == (
        "pandas==2.0.0",
        "scipy==1.10.1",
    )


def test_an_mlmodels_pin_narrows_a_users_open_requirement():
    assert pins({}, user=["pandas"], mlmodel=["pandas==1.5.3"]) == ("pandas==1.5.3",)


def test_mlflow_itself_is_not_needed_to_serve_what_it_logged():
    assert pins({}, mlmodel=["mlflow==2.9.0", "cloudpickle==2.2.1"]) == ("cloudpickle==2.2.1",)


def test_the_training_interpreters_versions_fill_the_gaps_where_it_agrees_with_the_model():
    found = pins({"scikit-learn": "1.2.2"}, training=TRAINING, needed={"pandas", "scikit-learn"})
    assert found == ("pandas==1.5.3", "scikit-learn==1.2.2")


def test_an_interpreter_that_disagrees_with_the_model_says_nothing():
    found = pins({"scikit-learn": "1.0.2"}, training=TRAINING, needed={"pandas"})
    assert found == ("pandas", "scikit-learn==1.0.2")


def test_a_stand_in_takes_the_version_of_what_it_stands_for():
    assert pins({}, training=TRAINING, needed={"opencv-python-headless"}) == (
        "opencv-python-headless==4.7.0.72",
    )


def test_a_cpu_variant_agrees_with_a_model_of_its_library():
    assert agrees({"xgboost": "2.1.4"}, {"xgboost-cpu": "2.1.4"})


def test_distributions_that_no_index_has_are_told_apart():
    assert [one.name for one in strangers(TRAINING, {"mine", "pandas"})] == ["mine"]


def test_a_pickle_that_names_numpys_new_core_needs_numpy_2():
    modules = {"numpy._core.multiarray", "numpy", "sklearn.svm"}
    needed = (*distributions_for(modules, None), *least(modules))
    assert pins({"scikit-learn": "1.5.2"}, needed=needed) == ("numpy>=2", "scikit-learn==1.5.2")
    assert pins({}, user=["numpy"], needed=needed) == ("numpy>=2", "scikit-learn")
    assert pins({}, user=["numpy==2.1.0"], needed=least(modules)) == ("numpy==2.1.0",)
    assert least({"numpy.core.multiarray", "numpy._corelike"}) == ()


def test_names_are_written_as_indexes_write_them():
    assert pins({}, needed=("Scikit_Learn",)) == ("scikit-learn",)
