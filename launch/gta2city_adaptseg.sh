#!/usr/bin/env bash
# AdaptSegNet, GTA5 -> Cityscapes, multi level.
#
#   bash launch/gta2city_adaptseg.sh [section.key=value ...]
#
#   GTA5_ROOT, CITYSCAPES_ROOT      the data; without them the miniature runs
#   GPUS=4                          processes, one per GPU
#   EXPERIMENT=adaptsegnet_single   another file of experiments/gta2city
source "$(dirname "$0")/lib.sh"

table=$(choose_table gta2city "GTA5_ROOT CITYSCAPES_ROOT")
run_experiment "$table" "${EXPERIMENT:-adaptsegnet_multi}" "$@"
