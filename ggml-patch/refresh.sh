#!/bin/sh
# Rewrites the hunks of patches/ from a git tree, and keeps their headers.
#
#   ggml-patch/refresh.sh TREE
#
# TREE is a git checkout of llama.cpp whose last commits are one per entry of series, in its order, over a commit that
# has upstream's pin with files/ copied over it. README.md tells how to get one.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
count=$(grep -c . "$here/series")
while read -r patch; do
    count=$((count - 1))
    header=$(sed '/^diff --git /,$d' "$here/patches/$patch")
    {
        printf '%s\n\n' "$header"
        git -C "$1" -c diff.noprefix=false -c diff.mnemonicPrefix=false -c diff.algorithm=myers \
            diff -U3 --no-color --no-ext-diff --full-index "HEAD~$((count + 1))" "HEAD~$count"
    } > "$here/patches/$patch.new"
    mv "$here/patches/$patch.new" "$here/patches/$patch"
done < "$here/series"
