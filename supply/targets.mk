# The supply chain: what is installed, whether it is what was tested, and whether anything is known against it.
SUPPLY := .venv/supply

.PHONY: lock audit sbom

$(SUPPLY)/.installed: supply/tools.txt | .venv/.python
	@echo "Installing the tools that look at what is installed"
	@$(BIN)/python -m venv $(SUPPLY)
	@$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check -r supply/tools.txt
	@touch $@

# torch is left out: its builds for processors and for GPUs carry one version and come from different places.
lock: $(SUPPLY)/.installed
	@$(SUPPLY)/bin/uv pip compile constraints.txt --quiet --no-config --no-deps --no-annotate --generate-hashes \
		--no-emit-package torch --python-version 3.11 --custom-compile-command "make lock" -o supply/requirements.lock
	@echo "supply/requirements.lock: $$(grep -c '==' supply/requirements.lock) packages with hashes"

audit: $(SUPPLY)/.installed
	@$(SUPPLY)/bin/python supply/audit.py constraints.txt

sbom: .venv/.installed $(SUPPLY)/.installed
	@mkdir -p dist
	@$(SUPPLY)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
		-o dist/sbom.json $(BIN)/python
	@echo "dist/sbom.json: $$(grep -c '"purl"' dist/sbom.json) components"
