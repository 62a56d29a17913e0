#!/usr/bin/env bash
# Installs the system packages that the project needs and this machine lacks; does nothing when all
# are there. Building and running `tdnn` alone (cargo build -p tdnn) needs none of them.
set -euo pipefail

debian_packages=(
    pkg-config clang libclang-dev
    libavcodec-dev libavformat-dev libavfilter-dev libavdevice-dev
    libswscale-dev libswresample-dev libavutil-dev ffmpeg
)

if ! command -v cargo >/dev/null; then
    echo "setup: Rust is missing; install it from https://rustup.rs and run this again" >&2
    exit 1
fi

if ! command -v apt-get >/dev/null; then
    if pkg-config --exists libavcodec libavformat libavfilter libavdevice libswscale libswresample libavutil 2>/dev/null &&
        command -v clang >/dev/null; then
        exit 0
    fi
    cat >&2 <<'MESSAGE'
setup: this is not Debian or Ubuntu; install FFmpeg's development files, clang and pkg-config with
  Fedora:    sudo dnf install ffmpeg-free-devel clang clang-devel pkgconf-pkg-config
  Arch:      sudo pacman -S --needed ffmpeg clang pkgconf
  Homebrew:  brew install ffmpeg llvm pkg-config
and run this again.
MESSAGE
    exit 1
fi

missing=()
for package in "${debian_packages[@]}"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "setup: as root, run: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
echo "setup: installing ${missing[*]}" >&2
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
