#!/usr/bin/env bash
# Source-only PSPNet, GTA5 -> Cityscapes: the baseline of every adaptation table.
#
#   bash launch/gta2city_source_only.sh [section.key=value ...]
#
#   GTA5_ROOT, CITYSCAPES_ROOT   the data; without them the miniature runs
#   GPUS=4                       processes, one per GPU
#   EXPERIMENT=oracle            another file of experiments/gta2city
source "$(dirname "$0")/lib.sh"

table=$(choose_table gta2city "GTA5_ROOT CITYSCAPES_ROOT")
run_experiment "$table" "${EXPERIMENT:-source_only}" "$@"
