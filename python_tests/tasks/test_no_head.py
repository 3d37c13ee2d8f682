"""Models that cannot answer: what they are, and what to do first."""

import pytest
from original_files import write_encoder
from other_encoders import encoder_folder
from test_finetune_starts import vocabulary
from toy_tasks import sentiment_words
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from spanbert_ext import SpanBertForPreTraining
from spanbert_ext.cli import command
from spanbert_ext.errors import ConfigError, DataError, SpanBertError
from spanbert_ext.model.pretraining import SpanBertConfig
from spanbert_ext.tasks import CorefResolver, ExtractiveQA, RelationClassifier, SpanTagger

# Class -> the task that trains one, and what the head is called.
PIPELINES = {
    SpanTagger: ("ner", "token classification"),
    ExtractiveQA: ("squad", "question answering"),
    CorefResolver: ("coref", "coreference"),
    RelationClassifier: ("tacred", None),
}


def message(pipeline, model, error=SpanBertError):
    with pytest.raises(error) as caught:
        pipeline(str(model), device="cpu")
    return str(caught.value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name -> (folder, what the message calls it)"""
    home = tmp_path_factory.mktemp("no-head")
    encoder_folder("bert", home / "bert")
    encoder_folder("roberta", home / "roberta")
    encoder_folder("bert", home / "mlm", builder=AutoModelForMaskedLM)
    encoder_folder("distilbert", home / "sst", builder=AutoModelForSequenceClassification)
    step = encoder_folder("bert", home / "spanbert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    (step / "config.json").unlink()
    SpanBertForPreTraining(SpanBertConfig(vocab_size=160, **sizes)).save_pretrained(step)
    return {
        "bert": (home / "bert", "it is a BertModel"),
        "roberta": (home / "roberta", "it is a RobertaModel"),
        "mlm": (home / "mlm", "it is a BertForMaskedLM"),
        "sst": (home / "sst", "it is a DistilBertForSequenceClassification"),
        "spanbert": (home / "spanbert", "it is a SpanBERT from pre-training"),
    }


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda own: own.__name__)
@pytest.mark.parametrize("name", ["bert", "roberta", "mlm", "sst", "spanbert"])
def test_a_model_without_the_head(folders, name, pipeline):
    folder, what = folders[name]
    task, head = PIPELINES[pipeline]
    said = message(pipeline, folder, ConfigError if head is None else DataError)
    assert said.startswith(f"{folder}: ")
    assert f"fine-tune it first, as with `spanbert finetune {task} --model {folder}`" in said
    assert head is None or f"it has no {head} head ({what})" in said
    assert "again" not in said


def test_weights_that_do_not_name_their_class(tmp_path):
    """As the released archives."""
    write_encoder(tmp_path / "original")
    vocabulary(tmp_path / "original")
    config = tmp_path / "original" / "config.json"
    config.write_text(config.read_text().replace("{", '{"model_type": "bert",', 1))
    said = message(ExtractiveQA, tmp_path / "original", DataError)
    assert "it has no question answering head (it is an encoder alone)" in said


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda own: own.__name__)
def test_a_model_of_another_task(toy_bert, tmp_path_factory, pipeline):
    home = tmp_path_factory.getbasetemp() / "another-task"
    if not home.exists():
        home.mkdir()
        assert command.main(sentiment_words(toy_bert, home, home / "run", max_steps=1)) == 0
    said = message(pipeline, home / "run")
    assert " for sst-2, not " in said
    assert f"spanbert finetune {PIPELINES[pipeline][0]}" in said


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda own: own.__name__)
def test_nothing_at_all(tmp_path, pipeline):
    (tmp_path / "empty").mkdir()
    said = message(pipeline, tmp_path / "empty", ConfigError)
    assert said.startswith(f"{tmp_path}/empty: no model here: expected a run with checkpoints")
    said = message(pipeline, tmp_path / "absent", ConfigError)
    assert said == f"{tmp_path}/absent: there is no such file or directory"


def test_commands(folders, capsys):
    folder, _ = folders["bert"]
    words = [f"--model={folder}", f"--data={folder}/config.json", "--device=cpu"]
    assert command.main(["evaluate", "squad", *words]) == ConfigError.exit_code
    assert f"`spanbert finetune squad --model {folder}`" in capsys.readouterr().err
