#!/usr/bin/env bash
# Installs everything that ltd-pipe needs into .venv. `make` runs it; it is safe to repeat.
#
#   ./setup.sh             install what is missing
#   ./setup.sh --dry-run   print the commands that it would run
#
# PYTHON         interpreter of a new .venv; default: what .venv has, or the first of
#                python3, python3.13, python3.12 and python3.11 that is new enough
# TORCH_BACKEND  uv's --torch-backend: cpu, cu130, auto, …; remembered by .venv; empty: PyPI's
#                build, which has CUDA and also runs on CPUs (the default)
#
# pip's and uv's own variables (PIP_INDEX_URL, UV_CACHE_DIR, …) work as everywhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly VENV=.venv
# Packages whose own pins are out of date: no resolver takes them in beside the others.
readonly BENCH_PINS=requirements-bench.lock
readonly STAMP=$VENV/set-up
readonly BACKEND_FILE=$VENV/torch-backend
DRY_RUN=
[[ ${1:-} == --dry-run ]] && DRY_RUN=1

main() {
    # Two makes at once: the second waits, and then finds everything done.
    exec 9<.
    flock 9
    exec 3>/dev/null
    [[ -n $DRY_RUN ]] && exec 3>&1
    choose_python
    choose_torch_backend
    if is_up_to_date; then
        return
    fi
    install_system_packages
    make_venv
    install_python_packages
    [[ -n $DRY_RUN ]] && return
    echo "$TORCH_BACKEND" >"$BACKEND_FILE"
    key >"$STAMP"
    say "done in $SECONDS s"
}

say() { echo "set-up: $*" >&2; }

stop() {
    say "$@"
    exit 1
}

run() {
    if [[ -n $DRY_RUN ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

# ---------------------------------------------------------------- what is wanted

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

choose_python() {
    local candidate candidates=("$VENV/bin/python" python3 python3.13 python3.12 python3.11)
    [[ -n ${PYTHON:-} ]] && candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if is_supported "$candidate"; then
            PYTHON=$candidate
            return
        fi
    done
    stop "Python 3.11 to 3.13 is needed; looked at: ${candidates[*]}." \
        "Install one, and name it if it is not python3: PYTHON=/path/to/python3.12 make …"
}

python_version() { "$1" -c 'import platform; print(platform.python_version())'; }

choose_torch_backend() {
    local remembered=
    [[ -f $BACKEND_FILE ]] && remembered=$(<"$BACKEND_FILE")
    TORCH_BACKEND=${TORCH_BACKEND-${UV_TORCH_BACKEND-$remembered}}
    PINS=requirements.lock OPTIONS=(--require-hashes)
    if [[ -n $TORCH_BACKEND ]]; then
        PINS=$VENV/requirements.txt OPTIONS=(--torch-backend "$TORCH_BACKEND")
    fi
}

# What the environment was made from: when one of these changes, it is made anew.
key() {
    echo "Python $(python_version "$PYTHON")"
    echo "in $PWD, torch backend ${TORCH_BACKEND:-default}"
    sha256sum requirements.lock "$BENCH_PINS" setup.cfg pyproject.toml setup.sh
}

is_up_to_date() {
    [[ -f $STAMP && -x $VENV/bin/ltd-pipe && $(<"$STAMP") == "$(key)" ]] || return 1
    # The stamp tells what was installed, this what still is: it takes 0.1 s.
    local changes=("$VENV/bin/uv" pip install --python "$VENV/bin/python" --dry-run --offline)
    # Both files are complete, and what the second one's packages ask for cannot be had.
    changes+=(--no-deps "${OPTIONS[@]}" -r "$PINS" -r "$BENCH_PINS")
    [[ $("${changes[@]}" 2>&1) == *"no changes"* ]]
}

# ---------------------------------------------------------------- system packages

# ffcv is compiled on installation, against OpenCV and libjpeg-turbo.
install_system_packages() {
    local packages
    mapfile -t packages < <(missing_packages)
    ((${#packages[@]})) || return 0
    say "system packages are missing: ${packages[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get)
    if ! command -v apt-get >/dev/null; then
        advise "${packages[@]}"
    elif ((EUID != 0)); then
        sudo -n true 2>/dev/null || advise "${packages[@]}"
        apt=(sudo -n "${apt[@]}")
    fi
    say "installing them with apt-get, a minute or two"
    # dpkg's line per package would bury ours; errors still come.
    run "${apt[@]}" update -qq >&3
    run "${apt[@]}" install -qq --yes --no-install-recommends "${packages[@]}" >&3
}

missing_packages() {
    has pkg-config || echo pkg-config
    pkg-config --exists opencv4 2>/dev/null || echo libopencv-dev
    pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    has g++ || has c++ || echo g++
    has git || echo git
    has ssh-keygen || echo openssh-client
    # Debian splits these off; other builds of Python have them.
    "$PYTHON" - <<'EOF'
import importlib.util, pathlib, sys, sysconfig
name = f"python{sys.version_info.major}.{sys.version_info.minor}"
if importlib.util.find_spec("ensurepip") is None:
    print(f"{name}-venv")
if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
    print(f"{name}-dev")
EOF
}

has() { command -v "$1" >/dev/null; }

advise() {
    cat >&2 <<EOF
They need an administrator. Run the line for your system, then make again:
  Debian, Ubuntu   sudo apt-get install $*
  Fedora           sudo dnf install opencv-devel turbojpeg-devel pkgconf-pkg-config gcc-c++ python3-devel git
  conda            conda install -c conda-forge opencv libjpeg-turbo pkg-config cxx-compiler git
EOF
    exit 1
}

# ---------------------------------------------------------------- Python packages

make_venv() {
    if "$VENV/bin/python" -m uv --version &>/dev/null && is_in_place; then
        return
    fi
    say "making $VENV with $("$PYTHON" --version)"
    # A virtual environment cannot be made anew by its own interpreter.
    PYTHON=$("$PYTHON" -c 'import sys; print(sys._base_executable)')
    run "$PYTHON" -m venv --clear "$VENV"
    [[ -n $DRY_RUN ]] || uv_pin >"$VENV/uv.txt"
    run "$VENV/bin/python" -m pip install --quiet --require-hashes --requirement "$VENV/uv.txt"
}

# Of the wanted Python, and not moved: the commands in it name their interpreter by its path.
is_in_place() {
    [[ $(python_version "$VENV/bin/python") == "$(python_version "$PYTHON")" ]] &&
        grep -qF " $PWD/$VENV" "$VENV/pyvenv.cfg"
}

# uv's version and hashes stand in the lock like everybody's.
uv_pin() { sed -n '/^uv==/,/[^\\]$/p' requirements.lock; }

install_python_packages() {
    local target=(--python "$VENV/bin/python")
    # Progress bars are for people; logs need the errors only.
    [[ -t 2 ]] || target+=(--quiet)
    [[ -n $TORCH_BACKEND ]] && resolve_for_torch_backend
    say "installing the packages of $PINS and $BENCH_PINS"
    # It installs just what the files name, whatever else that asks for.
    # Without byte code every process would start 5 s later where Python may not write its own.
    run "$VENV/bin/uv" pip sync "${target[@]}" --compile-bytecode "${OPTIONS[@]}" \
        "$PINS" "$BENCH_PINS" ||
        stop "some packages did not install." \
            "If it was ffcv: it needs a C++ compiler, OpenCV and libjpeg-turbo with headers;" \
            "on Debian and Ubuntu: sudo apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++"
    run "$VENV/bin/uv" pip install "${target[@]}" --no-deps --editable .
}

# Other builds of torch have other files, so other hashes, and other libraries beside them.
# The lock's versions stand in the output file beforehand: uv keeps those that still fit.
resolve_for_torch_backend() {
    say "choosing packages for torch backend $TORCH_BACKEND"
    [[ -n $DRY_RUN ]] || sed -nE '/^[a-z0-9].*==/ s/ *\\$//p' requirements.lock >"$PINS"
    run "$VENV/bin/uv" pip compile --python "$VENV/bin/python" "${OPTIONS[@]}" --extra dev \
        --quiet --output-file "$PINS" setup.cfg ||
        stop "no packages were found for TORCH_BACKEND=$TORCH_BACKEND." \
            "Another one may do; TORCH_BACKEND= (empty) takes the default build."
}

main
