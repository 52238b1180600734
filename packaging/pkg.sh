#!/bin/sh
# Builds a signed pkg of a signed binary, and has it notarised if NOTARY_PROFILE names a keychain profile of notarytool.
#   packaging/pkg.sh BINARY VERSION "Developer ID Installer: NAME (TEAM)" OUTPUT.pkg
# Needs a Mac and a Developer ID. Not yet verified on macOS.
set -eu
binary=${1:?BINARY} version=${2:?VERSION} identity=${3:?IDENTITY} output=${4:?OUTPUT}

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/usr/local/bin"
install -m 755 "$binary" "$root/usr/local/bin/lima-guard"
pkgbuild --root "$root" --identifier org.lima-guard --version "$version" --install-location / --ownership recommended \
  --sign "$identity" "$output"
if [ -n "${NOTARY_PROFILE:-}" ]; then
  xcrun notarytool submit "$output" --keychain-profile "$NOTARY_PROFILE" --wait
  xcrun stapler staple "$output"
fi
