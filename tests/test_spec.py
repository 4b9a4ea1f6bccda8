import json
import subprocess
import sys
from dataclasses import replace

import pytest

from resnetkit.errors import UsageError
from resnetkit.models.geometry import Convolution, iter_layers
from resnetkit.models.spec import SPECS, ModelSpec, describe, parse_spec

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet50_v1": 25_557_032,
    "resnet101_v1": 44_549_160,
    "resnet152_v1": 60_192_808,
    "resnet18_a": 11_515_688,
    "resnet34_a": 21_623_848,
    "resnet34_c": 22_716_840,
    "plain18": 11_515_688,
    "plain34": 21_623_848,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
    "resnet20_b": 272_474,
    "resnet32_b": 466_906,
    "resnet44_b": 661_338,
    "resnet56_b": 855_770,
    "resnet110_b": 1_730_714,
    "resnet1202_b": 19_424_026,
    "resnet20_c": 283_962,
    "resnet32_c": 489_594,
    "resnet44_c": 695_226,
    "resnet56_c": 900_858,
    "resnet110_c": 1_826_202,
    "resnet1202_c": 20_538_714,
    "plain20": 269_722,
    "plain32": 464_154,
    "plain44": 658_586,
    "plain56": 853_018,
    "plain110": 1_727_962,
    "resnet18d": 11_708_744,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "seresnet50": 28_088_024,
    "resnetblur50": 25_557_032,
    "resnet50_gn": 25_557_032,
    "preact_resnet18": 11_687_720,
    "preact_resnet34": 21_795_880,
    "preact_resnet50": 25_549_352,
    "preact_resnet101": 44_541_480,
    "preact_resnet152": 60_185_128,
    "preact_resnet110": 1_727_962,
    "preact_resnet164": 1_703_258,
    "preact_resnet1001": 10_327_706,
}
GMACS = {
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "resnet50_v1": 3.858,
    "resnet101_v1": 7.570,
    "resnet152_v1": 11.282,
    "resnet20": 0.04055,
    "resnet32": 0.06886,
    "resnet44": 0.09717,
    "resnet56": 0.12549,
    "resnet110": 0.25289,
    "resnet1202": 2.82924,
}
RELATIVES_GMACS = {
    "resnet50,stem=deep": 4.3,  # ResNet-50-C and -D: arXiv:1812.01187, Table 5
    "resnet50d": 4.3,
    "resnet50_v1,attention=se": 3.87,  # SE-ResNets: arXiv:1709.01507, Table 2
    "resnet101_v1,attention=se": 7.60,
    "resnet152_v1,attention=se": 11.32,
}


def test_the_family_has_these_networks():
    assert list(SPECS) == list(PARAMETERS)


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_parameters_are_the_papers_to_the_digit(name, parameters):
    assert SPECS[name].parameters == parameters


@pytest.mark.parametrize(("name", "gmacs"), GMACS.items())
def test_multiply_adds_are_the_papers_within_half_a_percent(name, gmacs):
    assert SPECS[name].macs() / 1e9 == pytest.approx(gmacs, rel=0.005)


@pytest.mark.parametrize(("model", "gmacs"), RELATIVES_GMACS.items())
def test_multiply_adds_of_the_relatives_are_near_the_published_ones(model, gmacs):
    assert parse_spec(model).macs() / 1e9 == pytest.approx(gmacs, rel=0.008)


def test_the_sizes_of_2016b():
    # Table 4: 1.7M, 1.7M and 10.2M; the last one without normalisations.
    millions = [SPECS[f"preact_resnet{layers}"].parameters / 1e6 for layers in (110, 164, 1001)]
    assert [round(million, 1) for million in millions] == [1.7, 1.7, 10.3]
    weights = [part.parameters for part in iter_layers(SPECS["preact_resnet1001"]) if isinstance(part, Convolution)]
    assert round(sum(weights) / 1e6, 1) == 10.2


@pytest.mark.parametrize("name", [name for name in SPECS if name.startswith("plain")])
def test_a_plain_net_has_its_residual_twins_size_and_cost(name):
    twin = replace(SPECS[name], shortcut="A")
    assert twin in SPECS.values()
    assert (SPECS[name].parameters, SPECS[name].macs()) == (twin.parameters, twin.macs())


@pytest.mark.parametrize("name", SPECS)
def test_the_number_in_the_name_is_the_papers_depth(name):
    digits = "".join(c if c.isdigit() else " " for c in name).split()[0]
    assert SPECS[name].layers == int(digits)


@pytest.mark.parametrize(
    ("model", "channels", "strides"),
    [
        ("resnet18", (64, 128, 256, 512), (4, 8, 16, 32)),
        ("resnet50", (256, 512, 1024, 2048), (4, 8, 16, 32)),
        ("resnext50_32x4d", (256, 512, 1024, 2048), (4, 8, 16, 32)),
        ("resnet20", (16, 32, 64), (1, 2, 4)),
        ("resnet50,dilated=false-true-true", (256, 512, 1024, 2048), (4, 8, 8, 8)),
        ("resnet18,dilated=true-false-true", (64, 128, 256, 512), (4, 4, 8, 8)),
        ("resnet18,stem=cifar,width=32,depths=1-1", (32, 64), (1, 2)),
        ("resnet50d", (256, 512, 1024, 2048), (4, 8, 16, 32)),
        ("preact_resnet164", (64, 128, 256), (1, 2, 4)),
        ("resnet50,output_stride=8", (256, 512, 1024, 2048), (4, 8, 8, 8)),
        ("preact_resnet18,output_stride=16", (64, 128, 256, 512), (4, 8, 16, 16)),
        ("resnet20,output_stride=1", (16, 32, 64), (1, 1, 1)),
    ],
)
def test_features_channels_and_strides(model, channels, strides):
    spec = parse_spec(model)
    assert (spec.channels, spec.strides) == (channels, strides)


def test_multiply_adds_grow_with_the_picture():
    spec = SPECS["resnet50"]
    assert spec.macs(224) == spec.macs()
    classifier = 2048 * 1000
    assert spec.macs(448) - classifier == 4 * (spec.macs(224) - classifier)


def test_dilation_follows_every_stage_after_the_stride_it_replaces():
    stages = parse_spec("resnet50", dilated=(False, True, True)).stages
    assert [(s[0].stride, s[0].dilation, s[0].out_dilation, s[-1].dilation) for s in stages] == [
        (1, 1, 1, 1),
        (2, 1, 1, 1),
        (1, 1, 2, 2),
        (1, 2, 4, 4),
    ]


def test_output_stride_is_another_word_for_dilation():
    assert parse_spec("resnet50,output_stride=8") == parse_spec("resnet50,dilated=false-true-true")
    assert parse_spec("resnet50", output_stride=16).dilated == (False, False, True)
    assert parse_spec("resnet50,output_stride=32") == SPECS["resnet50"]
    assert parse_spec("resnet50,output_stride=8").output_stride == 8
    assert parse_spec("resnet18,output_stride=4,depths=1-1") == parse_spec("resnet18,depths=1-1,dilated=true")
    dilated = parse_spec("resnet50,output_stride=8")
    assert parse_spec(dilated, output_stride=32) == SPECS["resnet50"]
    assert "output_stride" not in dilated.to_dict()


def test_blocks_are_dropped_more_often_the_deeper_they_are():
    spec = parse_spec("resnet18", drop_path=0.35)
    assert [block.drop_path for stage in spec.stages for block in stage] == pytest.approx(
        [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35], abs=1e-12
    )


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_survives_json(name):
    spec = replace(SPECS[name], dilated=(True,) * (len(SPECS[name].depths) - 1), classes=7)
    text = json.dumps(spec.to_dict())
    assert json.loads(text) == spec.to_dict()
    assert ModelSpec.from_dict(json.loads(text)) == spec


def test_from_dict_takes_defaults_for_what_is_not_given():
    assert ModelSpec.from_dict({"block": "basic", "depths": [3, 4, 6, 3]}) == SPECS["resnet34"]


def test_a_header_from_before_the_relatives_still_loads():
    old = {
        "block": "bottleneck",
        "depths": [3, 4, 6, 3],
        "stem": "imagenet",
        "width": 64,
        "shortcut": "B",
        "downsample_in": "3x3",
        "groups": 32,
        "width_per_group": 4,
        "dilated": [],
        "classes": 12,
        "in_channels": 3,
    }
    spec = ModelSpec.from_dict(old)
    assert spec == replace(SPECS["resnext50_32x4d"], classes=12)
    assert spec.to_dict() == old | {
        "order": "post",
        "norm": "batch",
        "attention": "none",
        "pooled_shortcut": False,
        "blur": 0,
        "drop_path": 0.0,
    }


def test_no_dilation_has_one_spelling():
    assert replace(SPECS["resnet50"], dilated=(False, False, False)) == SPECS["resnet50"]
    assert len({replace(SPECS["resnet50"], depths=[3, 4, 6, 3]), SPECS["resnet50"]}) == 1


@pytest.mark.parametrize(
    ("text", "changes", "fields"),
    [
        ("resnet20", {}, {}),
        ("resnet20,shortcut=B,depths=3-3-3,classes=100", {}, {"shortcut": "B", "classes": 100}),
        (" resnet20 , classes = 100 , width=32 ", {}, {"classes": 100, "width": 32}),
        ("resnet20", {"in_channels": 1, "classes": "7"}, {"in_channels": 1, "classes": 7}),
        ("resnet20,shortcut=none", {"depths": [9, 9, 9]}, {"shortcut": "none", "depths": (9, 9, 9)}),
        ("resnet20", {"depths": "2-2"}, {"depths": (2, 2)}),
        ("resnet20,depths=4", {}, {"depths": (4,)}),
        ("resnet20,dilated=false-true", {}, {"dilated": (False, True)}),
        ("resnet20,dilated=No-1", {}, {"dilated": (False, True)}),
        (
            "resnet20,block=bottleneck,downsample_in=1x1,groups=4,width_per_group=32",
            {},
            {"block": "bottleneck", "downsample_in": "1x1", "groups": 4, "width_per_group": 32},
        ),
        (
            "resnet20,order=pre,norm=frozen,attention=se,blur=3,drop_path=0.1,shortcut=B,pooled_shortcut=Yes,stem=deep",
            {},
            {
                "order": "pre",
                "norm": "frozen",
                "attention": "se",
                "blur": 3,
                "drop_path": 0.1,
                "shortcut": "B",
                "pooled_shortcut": True,
                "stem": "deep",
            },
        ),
        ("resnet20,drop_path=0", {"blur": "5", "pooled_shortcut": "0"}, {"blur": 5}),
    ],
)
def test_any_field_is_a_changed_row(text, changes, fields):
    assert parse_spec(text, **changes) == replace(SPECS["resnet20"], **fields)


def test_a_spec_is_changed_like_a_name():
    assert parse_spec(SPECS["resnet20"], classes=100) == parse_spec("resnet20,classes=100")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnt50", 'unknown model "resnt50"; did you mean "resnet50"? See resnetkit models'),
        ("ResNet50", 'did you mean "resnet50"?'),
        ("", 'unknown model ""'),
        ("resnet20,shortcuts=B", 'unknown field "shortcuts"; did you mean "shortcut"?'),
        ("resnet20,shortcut=b", 'unknown shortcut "b"; did you mean "B"? Known: A, B, C, none'),
        ("resnet20,shortcut=D", 'unknown shortcut "D". Known: A, B, C, none'),
        ("resnet20,block=bottelneck", 'did you mean "bottleneck"?'),
        ("resnet20,stem=mnist", "Known: imagenet, cifar, deep"),
        ("resnet20,downsample_in=2x2", "Known: 1x1, 3x3"),
        ("resnet20,classes", '"classes" in "resnet20,classes" is not a change; write field=value'),
        ("resnet20,classes=ten", 'classes is "ten"; it takes a whole number'),
        ("resnet20,classes=1-2", 'classes is "1-2"; it takes a whole number'),
        ("resnet20,classes=²", 'classes is "²"'),
        ("resnet20,classes=0", "classes has 0; it takes whole numbers from 1 up"),
        ("resnet20,in_channels=0", "in_channels has 0"),
        ("resnet20,width=0", "width has 0"),
        ("resnet20,classes=5,classes=6", "classes is given twice"),
        ("resnet20,depths=3-x-3", 'depths is "3-x-3"; it takes whole numbers with dashes'),
        ("resnet20,depths=3-0-3", "depths has 0"),
        ("resnet20,depths=", 'depths is ""'),
        ("resnet20,dilated=maybe-true", 'dilated is "maybe-true"; write true or false'),
        ("resnet20,dilated=true", "dilated has 1 values for 3 stages; give 2"),
        ("resnet20,groups=2", "basic blocks have no groups"),
        ("resnet20,downsample_in=1x1", "basic blocks have no groups, width_per_group or downsample_in"),
        ("resnet50,groups=0", "groups has 0"),
        ("resnet50,width_per_group=1,width=32", "leaves no channel for a group"),
        ("resnet20,order=before", 'unknown order "before". Known: post, pre'),
        ("resnet20,norm=grup", 'unknown norm "grup"; did you mean "group"? Known: batch, group, frozen'),
        ("resnet20,attention=eca", 'unknown attention "eca"'),
        ("resnet20,blur=2", "blur is 2; it takes 0, 3, 5 or 7"),
        ("resnet20,drop_path=1", "drop_path is 1.0; it takes a number from 0 to less than 1"),
        ("resnet20,drop_path=nan", "drop_path is nan; it takes a number"),
        ("resnet20,drop_path=some", 'drop_path is "some"; it takes a number, such as 0.1'),
        ("resnet20,pooled_shortcut=maybe", 'pooled_shortcut is "maybe"; write true or false'),
        ("resnet20,pooled_shortcut=true", "pooled_shortcut needs projections: shortcut=B or C, not A"),
        ("plain20,order=pre", "order=pre needs shortcuts"),
        ("plain20,drop_path=0.1", "drop_path needs shortcuts"),
        ("resnet50_v1,blur=3", "blur replaces the stride of the 3x3; use downsample_in=3x3, or blur=0"),
        ("resnet18,stem=deep,width=1", "stem=deep halves the width, which is 1"),
        ("resnet20,norm=group", "norm=group makes 32 groups of channels, but a convolution has 16"),
        ("preact_resnet50,norm=group,width_per_group=12", "but a convolution has 12"),
        ("resnet50,output_stride=12", "output_stride is 12; it takes one of 4, 8, 16, 32 here"),
        ("resnet20,output_stride=32", "output_stride is 32; it takes one of 1, 2, 4 here"),
        ("resnet50,output_stride=8,dilated=true-true-true", "output_stride and dilated both set the dilation"),
        ("resnet50,output_strid=8", 'did you mean "output_stride"?'),
    ],
)
def test_a_wrong_text_is_named_with_its_mend(text, message):
    with pytest.raises(UsageError) as error:
        parse_spec(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 10.0}, "classes has 10.0"),
        ({"classes": True}, "classes has True"),
        ({"classes": None}, "classes has None"),
        ({"depths": ()}, "depths is empty"),
        ({"depths": 3}, "depths is 3; it takes a list"),
        ({"dilated": (1, 0)}, "dilated is [1, 0]; it takes true or false"),
        ({"shortcut": None}, 'unknown shortcut "None"'),
        ({"color": 1}, 'unknown field "color"'),
        ({"blur": 3.0}, "blur is 3.0"),
        ({"blur": True}, "blur is True"),
        ({"pooled_shortcut": 1}, "pooled_shortcut is 1; it takes true or false"),
        ({"drop_path": None}, "drop_path is None"),
        ({"drop_path": True}, "drop_path is True"),
        ({"norm": None}, 'unknown norm "None"'),
        ({"output_stride": 2.0}, "output_stride is 2.0"),
    ],
)
def test_a_wrong_value_is_named_with_its_mend(changes, message):
    with pytest.raises(UsageError) as error:
        parse_spec("resnet20", **changes)
    assert message in str(error.value)


def test_from_dict_names_unknown_and_missing_fields():
    with pytest.raises(UsageError, match='unknown field "blocks"; did you mean "block"'):
        ModelSpec.from_dict({"blocks": "basic", "depths": [3, 3, 3]})
    with pytest.raises(UsageError, match="a network needs block, but only depths is given"):
        ModelSpec.from_dict({"depths": [3, 3, 3]})


def test_describe_is_a_row_of_the_table():
    assert describe("resnet20,classes=100") == {
        "name": "resnet20,classes=100",
        "layers": 20,
        "block": "basic",
        "depths": "3-3-3",
        "shortcut": "A",
        "downsample_in": "3x3",
        "input_size": 32,
        "classes": 100,
        "parameters": 269_722 + 65 * 90,
        "gmacs": (40_551_040 + 64 * 90) / 1e9,
    }


def test_specs_need_no_torch():
    code = (
        "import sys, resnetkit.models.spec; print([m for m in ('torch', 'torchvision', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("text", ["resnt50", "vgg", "resnet20,shortcuts=B", "resnet20,zz=1", "resnet20,stem=x"])
def test_no_error_is_a_wall_of_names(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_spec(text)
    assert len(str(error.value)) < 240
    assert ("See resnetkit models" in str(error.value)) == ("," not in text)


@pytest.mark.parametrize(
    "name", ["resnetblur50", "resnet18,blur=7", "resnet20,blur=5", "resnet18,blur=3,output_stride=8"]
)
def test_least_size_is_the_least_that_goes_through(name: str) -> None:
    import torch

    from resnetkit.models.resnet import build

    spec = parse_spec(name)
    with torch.device("meta"):
        net = build(spec).eval()
        net(torch.empty(1, 3, spec.least_size, spec.least_size))
        with pytest.raises(RuntimeError, match="Padding size"):
            net(torch.empty(1, 3, spec.least_size - 1, spec.least_size - 1))
    assert parse_spec("resnet50").least_size == 1
