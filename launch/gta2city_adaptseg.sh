#!/usr/bin/env bash
# AdaptSegNet, GTA5 -> Cityscapes, multi level.
#
#   bash launch/gta2city_adaptseg.sh [section.key=value ...]
#
#   GTA5_ROOT, CITYSCAPES_ROOT      the data; without them the miniature runs
#   GPUS=4                          processes, one per GPU
#   EXPERIMENT=adaptsegnet_single   another file of experiments/gta2city
source "$(dirname "$0")/lib.sh"

run_experiment gta2city "${EXPERIMENT:-adaptsegnet_multi}" "GTA5_ROOT CITYSCAPES_ROOT" "$@"
