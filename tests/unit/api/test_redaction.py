"""Secrets are blotted out by their names, and nothing else is."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_api.documents import InvalidDocumentError, parse_run, read_documents
from spinrun_api.redaction import BLOT, for_processes, is_secret_name, redacted, redacted_argv, redacted_text
from unit.api.invalid_runs import MINIMAL

ROOT = Path(__file__).resolve().parents[3]
SECRET_NAMES = """
token key password secret credential credentials passphrase authorization HF_TOKEN hf-token hfToken HFToken HF_TOKENS
token2 userToken API_TOKENS wandbApiKey WANDB_API_KEY OPENAI_API_KEY openAIKey apiKey api_key API-KEY APIKEY api.key
apikey x-api-key API_KEYS --api-key aws_secret_access_key AWS_ACCESS_KEY_ID AWS_SESSION_TOKEN accessToken refresh_tokens
GITHUB_TOKEN SPINRUN_PREFERENCE_KEY MLFLOW_TRACKING_TOKEN MLFLOW_TRACKING_PASSWORD dbPassword dbpassword DB_PASSWD
clientSecret client_secret CLIENTSECRET secretKeyBase privateKey private-key ssh_private_key GOOGLE_CREDENTIALS
azureStorageAccountKey encryption_key signingKey authToken
"""
PLAIN_NAMES = """
max_tokens maxTokens tokensPerMicroBatch tokenizer tokenize detokenize keyboard primaryKey monkey keyword secretary max-
num-batched-tokens maxPromptTokens completion_tokens promptTokens tokens keys tokenCount token_limit tokens_per_second
eos_token eosTokenId pad_token_id token_ids num_key_value_heads topologyKey matchLabelKeys sort_key cacheKey foreign-key
publicKey ssh_public_key answer_key input_key KeyError secretRef secretKeyRef secretName secret_name SPINRUN_TOKEN_FILE
token_path credentials_file keyNames author bypass passed PATH x
"""
HIDDEN = "s3cr3tValue"


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_a_secrets_name_is_recognised(name: str) -> None:
    assert is_secret_name(name)
    assert HIDDEN not in json.dumps(redacted({"spec": {name: HIDDEN}}))
    assert HIDDEN not in json.dumps(redacted({"spec": {name: {"inner": [HIDDEN, {"x": HIDDEN}]}}}))
    assert HIDDEN not in redacted_text(f"with {name.lstrip('-')}={HIDDEN} and more")


@pytest.mark.parametrize("name", PLAIN_NAMES.split())
def test_another_name_is_left_alone(name: str) -> None:
    assert not is_secret_name(name)
    for value in ("plain", 7, ["plain"], {"inner": "plain"}):
        assert redacted({name: value}) == {name: value}
    assert redacted_text(f"{name}=plain {name}: plain1") == f"{name}=plain {name}: plain1"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (f"https://user:{HIDDEN}@host/x?q=1", f"https://{BLOT}@host/x?q=1"),
        (f"at postgres://u:{HIDDEN}@1@host:5432, retrying", f"at postgres://{BLOT}@host:5432, retrying"),
        (f"https://{HIDDEN}@github.com/x.git", f"https://{BLOT}@github.com/x.git"),
        (f"GET /x?a=1&access_token={HIDDEN}&b=2", f"GET /x?a=1&access_token={BLOT}&b=2"),
        (f"Authorization: Bearer {HIDDEN}", f"Authorization: Bearer {BLOT}"),
        (f"{{'Authorization': 'Basic {HIDDEN}=='}}", f"{{'Authorization': '{BLOT}'}}"),
        (f"sent bearer {HIDDEN}.x.y to it", f"sent bearer {BLOT} to it"),
        (f"HF_TOKEN={HIDDEN} python x", f"HF_TOKEN={BLOT} python x"),
        (f'PASSWORD="{HIDDEN} {HIDDEN}" x', f'PASSWORD="{BLOT}" x'),
        (f"password = '{HIDDEN}'", f"password = '{BLOT}'"),
        (f"vllm --hf-token {HIDDEN} --port 80", f"vllm --hf-token {BLOT} --port 80"),
        (f"vllm --hf-token={HIDDEN}", f"vllm --hf-token={BLOT}"),
        (f'{{"api_key": "a\\"{HIDDEN}", "n": 1}}', f'{{"api_key": "{BLOT}", "n": 1}}'),
        (f'{{"body": "{{\\"token\\": \\"{HIDDEN}\\"}}"}}', f'{{"body": "{{\\"token\\": \\"{BLOT}\\"}}"}}'),
        (f"{{'pass': 1, 'secret': '{HIDDEN}', 'k': [2]}}", f"{{'pass': 1, 'secret': '{BLOT}', 'k': [2]}}"),
        (
            f"Command '['x', '--api-key', '{HIDDEN}', '-v']' returned 1",
            f"Command '['x', '--api-key', '{BLOT}', '-v']' returned 1",
        ),
        (f"api_key: {HIDDEN}", f"api_key: {BLOT}"),
        (f"spec.rollout.engineArgs.hf-token={HIDDEN}", f"spec.rollout.engineArgs.hf-token={BLOT}"),
    ],
)
def test_messages_lose_their_secrets_alone(text: str, want: str) -> None:
    assert redacted_text(text) == want
    assert redacted_text(want) == want


@pytest.mark.parametrize(
    "text",
    [
        "SPINRUN_PREFERENCE_KEY: name the Secret's key",
        "the bearer token of SPINRUN_TOKEN_FILE=/etc/spinrun/token/token",
        "preference.rule.pattern: is not a valid regular expression: missing ) at position 3",
        "missing key: model.layers.0.mlp.weight; KeyError: 'a1b2c3d4'",
        "dns+http://demo-rollout.team.svc:8100, user@host, http://[::1]:80/@x",
        "prompt_tokens=12, max_tokens: 1024, tokens/s 300, token 7 of 9",
        "if token == 5: key was secret",
        "a password is required: add it",
    ],
)
def test_ordinary_sentences_stay_as_they_are(text: str) -> None:
    assert redacted_text(text) == text


def test_a_command_line_loses_the_values_of_secret_arguments() -> None:
    command = [
        "python3",
        "-m",
        "x",
        "--hf-token",
        HIDDEN,
        "--model",
        "m",
        f"--api-key={HIDDEN}",
        f"A_TOKEN={HIDDEN}",
        "--use-token",
        "--x",
    ]
    assert redacted_argv(command) == [
        *("python3", "-m", "x", "--hf-token", BLOT, "--model", "m", f"--api-key={BLOT}", f"A_TOKEN={BLOT}", "--use-token", "--x")
    ]


TEMPLATE: dict[str, Any] = {
    "metadata": {"annotations": {"vault/token": HIDDEN}},
    "spec": {
        "imagePullSecrets": [{"name": "registry"}],
        "automountServiceAccountToken": True,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "volumes": [{"name": "s", "secret": {"secretName": "mine", "items": [{"key": "a", "path": "b"}]}}],
        "containers": [
            {
                "name": "trainer",
                "args": ["--password", HIDDEN, "--verbose"],
                "env": [
                    {"name": "ANYTHING", "value": HIDDEN},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "api-key", "optional": True}}},
                ],
                "livenessProbe": {"httpGet": {"httpHeaders": [{"name": "Authorization", "value": HIDDEN}]}},
            }
        ],
    },
}


def with_secrets() -> dict[str, Any]:
    spec = MINIMAL["spec"] | {
        "trainer": {"template": TEMPLATE, "tokensPerMicroBatch": 4096},
        "rollout": {"engineArgs": {"gateway-token": HIDDEN, "mm-kwargs": f'{{"auth_token": "{HIDDEN}"}}', "max-num-seqs": 8}},
        "preference": {"judge": {"url": "https://judge/v1", "model": "m", "secretRef": {"name": "judge", "key": "api-key"}}},
    }
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(spec)}
    return MINIMAL | {"metadata": {"name": "demo", "annotations": annotations}, "spec": spec}


@pytest.mark.parametrize("without_secrets", [redacted, for_processes])
def test_a_run_without_its_secrets_is_still_that_run(without_secrets: Any) -> None:
    run = parse_run(with_secrets())
    document = without_secrets(run.to_document())
    assert HIDDEN not in json.dumps(document["spec"])
    again = parse_run(document)
    assert again.spec.preference == run.spec.preference
    assert again.spec.trainer.model_copy(update={"template": {}}) == run.spec.trainer.model_copy(update={"template": {}})
    pod, had = again.spec.trainer.template["spec"], TEMPLATE["spec"]
    for name in ("imagePullSecrets", "automountServiceAccountToken", "tolerations", "volumes"):
        assert pod[name] == had[name]
    assert pod["containers"][0]["env"] == [{"name": "ANYTHING", "value": BLOT}, had["containers"][0]["env"][1]]


def test_what_the_processes_read_is_otherwise_what_was_written() -> None:
    document = parse_run(
        MINIMAL
        | {"spec": MINIMAL["spec"] | {"data": {"prompts": {"source": "https://user:p@host/x.jsonl", "answerColumn": "a"}}}}
    ).to_document()
    assert for_processes(document)["spec"] == document["spec"]
    assert HIDDEN not in json.dumps(for_processes(parse_run(with_secrets()).to_document()))


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_has_nothing_to_hide(example: Path) -> None:
    (document,) = (document for document in read_documents(example) if document["kind"] == "SpinRun")
    document = parse_run(document).to_document()
    for name in ("trainer", "rollout"):
        document["spec"][name].pop("template")  # its variables may have values
    assert redacted(document) == document


def test_a_problem_does_not_repeat_a_secret() -> None:
    document = with_secrets()
    document["spec"]["rollout"]["engineArgs"]["gateway-token"] = [HIDDEN]
    document["spec"]["preference"]["judge"]["concurrency"] = f"https://user:{HIDDEN}@host"
    with pytest.raises(InvalidDocumentError) as raised:
        parse_run(document)
    assert len(raised.value.problems) >= 2
    assert HIDDEN not in str(raised.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text() | st.sampled_from(SECRET_NAMES.split()), children),
    max_leaves=20,
)


def test_what_is_not_json_is_left_as_it_is() -> None:
    assert redacted({1: {"token": "x"}, None: (Path("/a"), b"x")}) == {1: {"token": BLOT}, None: [Path("/a"), b"x"]}


@given(JSON)
def test_any_document_can_be_redacted_and_more_of_it_changes_nothing(document: Any) -> None:
    once = redacted(document)
    assert redacted(once) == once


@given(st.text(alphabet="tokenkey=:\"' \\@/-[]{}s3.,&", max_size=60))
def test_any_text_can_be_redacted_and_more_of_it_changes_nothing(text: str) -> None:
    once = redacted_text(text)
    assert redacted_text(once) == once


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "://",
        "k=",
        'token="',
        "a: ",
        "-",
        "--a ",
        "@",
        "Bearer ",
        "authorization: ",
        "key: ",
        '\\"',
        "token='",
        '"key":',
        "aA",
    ],
)
def test_a_long_text_takes_time_in_proportion(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    redacted_text(text)
    is_secret_name(text)
    assert time.process_time() - started < 5
