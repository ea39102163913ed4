#!/bin/sh
# The patch set as commits in a git repository, and back.
#
#   refresh.sh tree DIR [--sdist FILE]   make DIR: the pin, files/ over it, and a commit for each patch of series
#   refresh.sh move DIR [--sdist FILE]   rebase the commits of DIR onto the pin that UPSTREAM names now
#   refresh.sh write DIR                 write files/ and the hunks of patches/ from the commits of DIR
#
# The sdist comes from sherry-gguf's cache or is fetched, unless a file is given. In DIR the tag `pin` is upstream's
# tree, the commit of a patch has the patch's file name for its subject, and a file that the pin does not have belongs
# to files/, whichever commit it is in. The headers of patches/ stay as they are.
# PYTHON: an interpreter that has sherry-gguf's dependencies, if that is neither ../.venv's nor python3.
set -eu

die() {
    printf 'refresh.sh: %s\n' "$*" >&2
    exit 1
}

usage() {
    sed -n '4,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
[ $# = 2 ] || [ $# = 4 ] || usage
command=$1 dir=$2 sdist=
if [ $# = 4 ]; then
    [ "$3" = --sdist ] && [ "$command" != write ] || usage
    sdist=$4
fi
case $dir in /*) ;; *) dir=$PWD/$dir ;; esac

# No setting of the user's changes what git does here. `tree` writes into DIR's own configuration what matters when the
# user commits there.
for name in $(env | sed -n 's/^\(GIT_[A-Z_]*\)=.*/\1/p'); do
    unset "$name"
done
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_ATTR_NOSYSTEM=1 LC_ALL=C

field() { sed -n "s/^$1: *//p" "$here/UPSTREAM"; }
pin="$(field sdist) $(field version) $(field sha256)"
series=$(sed '/^ *#/d' "$here/series")
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

in_dir() { git -C "$dir" "$@"; }
in_index() { GIT_INDEX_FILE=$tmp/index git -C "$dir" "$@"; }

# unpack TO: the tree of the pin
unpack() {
    python=${PYTHON:-$here/../.venv/bin/python}
    command -v "$python" > /dev/null || python=python3
    PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH} "$python" - "$here" "$1" "$sdist" << 'END'
import sys
from pathlib import Path

from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp import fetch
from sherry_gguf.llama_cpp.cache import locked
from sherry_gguf.llama_cpp.upstream import PatchSet

here, to, sdist = sys.argv[1:]
try:
    pin = PatchSet.load(Path(here)).pin
    with locked() as cache:
        archive = fetch.add(cache, pin, Path(sdist)) if sdist else fetch.fetch(cache, pin)
        fetch.unpack(archive, pin.subdir, Path(to))
except SherryError as error:
    sys.exit(f"refresh.sh: {error}")
END
}

new_files() { (cd "$here/files" && find . -type f ! -path '*/.*' | sed 's,^\./,,' | sort); }

make_tree() {
    [ ! -e "$dir" ] || die "$dir is there already"
    trap 'rm -rf "$tmp" "$dir"' EXIT
    unpack "$dir"
    in_dir init -q --template=
    in_dir config user.name "${LOGNAME:-nobody}"
    in_dir config user.email nobody@localhost
    in_dir config core.autocrlf false
    in_dir config core.excludesFile /dev/null
    in_dir config core.hooksPath /dev/null
    in_dir config commit.gpgSign false
    in_dir config tag.gpgSign false
    mkdir -p "$dir/.git/info"
    echo '* -text !eol !filter !ident !working-tree-encoding !diff !merge' > "$dir/.git/info/attributes"
    in_dir add -A -f
    in_dir commit -q -m "$pin"
    in_dir tag pin

    for file in $(new_files); do
        [ ! -e "$dir/$file" ] || die "$file is upstream's in $pin, and one of files/"
        mkdir -p "$(dirname "$dir/$file")"
        cp "$here/files/$file" "$dir/$file"
    done
    in_dir add -A -f
    in_dir commit -q -m files
    for patch in $series; do
        in_dir apply --index --whitespace=nowarn "$here/patches/$patch" ||
            die "$patch does not fit $pin: make the tree of the pin that the series is made for, then \`move\` it"
        in_dir commit -q -m "$patch"
    done
    trap 'rm -rf "$tmp"' EXIT
    echo "$dir: $(in_dir rev-list --count pin..HEAD) commits on $pin"
}

# what `move` and `write` need
check_tree() {
    [ -e "$dir/.git" ] && in_dir rev-parse -q --verify pin > /dev/null || die "$dir was not made by \`refresh.sh tree\`"
    [ ! -e "$dir/.git/rebase-merge" ] || die "a rebase is going on in $dir: finish it with \`git rebase --continue\`"
    [ -z "$(in_dir status --porcelain)" ] || die "$dir has changes that are not committed"
}

move() {
    check_tree
    [ "$(in_dir log -1 --format=%s pin)" != "$pin" ] || die "$dir has the pin of UPSTREAM already: $pin"
    unpack "$tmp/pin"
    old=$(in_dir rev-parse pin)
    (
        cd "$tmp/pin"
        export GIT_DIR="$dir/.git" GIT_WORK_TREE="$tmp/pin" GIT_INDEX_FILE="$tmp/index"
        git add -A -f
        git tag -f pin "$(git commit-tree -p pin -m "$pin" "$(git write-tree)")" > /dev/null
    )
    in_dir rebase -q --onto pin "$old" ||
        die "resolve the conflicts in $dir, \`git add\` the files and \`git rebase --continue\`, until it ends"
    echo "$dir: $(in_dir rev-list --count pin..HEAD) commits on $pin"
}

write() {
    check_tree
    [ "$(in_dir log -1 --format=%s pin)" = "$pin" ] ||
        die "$dir is of $(in_dir log -1 --format=%s pin), UPSTREAM names $pin: \`refresh.sh move\` it"
    in_dir merge-base --is-ancestor pin HEAD || die "$dir is not on its pin: \`git rebase --onto pin pin~1\` there"

    added=$(in_dir diff --name-only --no-renames --diff-filter=A pin HEAD)
    for file in $added; do
        mkdir -p "$tmp/files/$(dirname "$file")"
        in_dir cat-file blob "HEAD:$file" > "$tmp/files/$file"
    done

    # The hunks, put on the pin again: they must give what HEAD has.
    mkdir "$tmp/patches"
    in_dir log --format='%H %s' pin..HEAD > "$tmp/commits"
    in_index read-tree pin
    for patch in $series; do
        [ -e "$here/patches/$patch" ] || die "patches/$patch is missing: write the header of the new patch there"
        commit=$(sed -n "s/ $patch\$//p" "$tmp/commits")
        in_dir rev-parse -q --verify "$commit^" > /dev/null ||
            die "$dir has no commit, or several, with the subject $patch, which series names"
        set --
        for file in $added; do
            set -- "$@" ":(exclude)$file"
        done
        {
            printf '%s\n\n' "$(sed '/^diff --git /,$d' "$here/patches/$patch")"
            in_dir diff -U3 --no-renames --full-index "$commit^" "$commit" -- . "$@"
        } > "$tmp/patches/$patch"
        in_index apply --cached --whitespace=nowarn "$tmp/patches/$patch" ||
            die "the commit of $patch does not give a patch; see \`git log pin..\` in $dir"
    done
    left=$(in_index diff-index --cached --name-only --diff-filter=d HEAD)
    [ -z "$left" ] ||
        die "the commits that series names leave out changes of" $left "- squash the others into them"

    for name in $(cd "$tmp" && find patches files -type f | sort); do
        cmp -s "$tmp/$name" "$here/$name" && continue
        mkdir -p "$(dirname "$here/$name")"
        cat "$tmp/$name" > "$here/$name"
        echo "$name"
    done
    for file in $(new_files); do
        [ -e "$tmp/files/$file" ] && continue
        rm "$here/files/$file"
        echo "files/$file is gone"
    done
}

case $command in
    tree) make_tree ;;
    move) move ;;
    write) write ;;
    *) usage ;;
esac
