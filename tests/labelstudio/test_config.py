from __future__ import annotations

import pytest

from lidiv_backend.labelstudio.config import (
    LabelConfigError,
    Target,
    UnknownLabelError,
    parse_label_config,
)
from tests.labelstudio import golden

BRUSH_LABELS = """<View>
  <Image name="photo" value="$picture"/>
  <BrushLabels name="paint" toName="photo"><Label value="Cat"/><Label value="Dog"/></BrushLabels>
  <KeyPointLabels name="point" toName="photo" smart="true">
    <Label value="Cat"/><Label value="Dog"/><Label value="Bird"/>
  </KeyPointLabels></View>"""
LABELS = """<View>
  <Labels name="kind" toName="photo"><Label value="Cat"/><Label value="Dog" alias="d"/></Labels>
  <Image name="photo" value="$picture"/>
  <Brush name="paint" toName="photo"/><KeyPoint name="point" toName="photo" smart="true"/></View>"""


def test_labels_of_the_brush_itself_go_into_one_result() -> None:
    (image,) = parse_label_config(BRUSH_LABELS).images
    assert (image.name, image.data_key) == ("photo", "picture")
    assert image.smart_keypoints == {"point"}
    assert image.target("Dog") == Target(to_name="photo", brush="paint", labels=None, label="Dog")


def test_labels_of_their_own_go_into_a_second_result() -> None:
    (image,) = parse_label_config(LABELS).images
    assert image.target("Cat") == Target(to_name="photo", brush="paint", labels="kind", label="Cat")
    assert image.target("d").label == "d"  # Label Studio writes the alias where there is one
    assert image.target(None) == Target(to_name="photo", brush="paint", labels=None, label=None)


def test_a_label_that_only_the_key_points_have_is_refused() -> None:
    (image,) = parse_label_config(BRUSH_LABELS).images
    with pytest.raises(UnknownLabelError, match=r"'Bird'.*'Cat', 'Dog'"):
        image.target("Bird")


def test_a_click_without_label_takes_the_only_one_that_there_is() -> None:
    one = BRUSH_LABELS.replace('<Label value="Dog"/>', "")
    assert parse_label_config(one).images[0].target(None).label == "Cat"
    with pytest.raises(UnknownLabelError, match="no label"):
        parse_label_config(BRUSH_LABELS).images[0].target(None)


def test_labels_from_the_task_are_all_accepted() -> None:
    dynamic = LABELS.replace('<Labels name="kind"', '<Labels name="kind" value="$options"')
    assert parse_label_config(dynamic).images[0].target("anything").labels == "kind"


def test_several_images_keep_their_own_tags() -> None:
    both = LABELS.replace("</View>", "") + LABELS.removeprefix("<View>").replace(
        "photo", "photo2"
    ).replace('"paint"', '"paint2"').replace('"point"', '"point2"').replace(
        '"kind"', '"kind2"'
    ).replace("$picture", "$other")
    config = parse_label_config(both)
    assert [image.name for image in config.images] == ["photo", "photo2"]
    assert config.image("photo2").data_key == "other"
    assert config.image("photo2").target("Cat").brush == "paint2"
    with pytest.raises(LabelConfigError, match="no image 'elsewhere'"):
        config.image("elsewhere")


@pytest.mark.parametrize("kind", ["brushlabels", "labels"])
def test_recorded_label_configs_are_usable(kind: str) -> None:
    (image,) = parse_label_config(golden.label_config(kind)).images
    assert image.target("Object").to_name == "image"


@pytest.mark.parametrize(
    ("xml", "lacks", "add"),
    [
        ("<View></View>", "no <Image>", "<Image"),
        (LABELS.replace("<Brush name", "<Polygon name"), "no <Brush>", '<Brush name="brush"'),
        (LABELS.replace("<KeyPoint name", "<Polygon name"), "no <KeyPoint>", 'smart="true"'),
        (BRUSH_LABELS.replace('toName="photo" smart', 'toName="other" smart'), "no <KeyPoint>", ""),
        ("", "cannot be read", ""),
        ("<View><Image", "cannot be read", ""),
        ("nonsense", "cannot be read", ""),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', "document type", ""),
    ],
)
def test_an_unusable_label_config_says_what_to_add(xml: str, lacks: str, add: str) -> None:
    with pytest.raises(LabelConfigError, match=lacks) as caught:
        parse_label_config(xml)
    assert add in caught.value.remedy
    assert caught.value.status == 400
