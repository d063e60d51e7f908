# What the scripts need of a machine, installed where it is missing. Sourced.

say() { printf '\n== %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$1" >&2
  [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2
  exit 1
}

# need_packages WHY "command:packages" …   installs the packages of each command that is not there.
need_packages() {
  local why="$1" pair missing=()
  shift
  for pair in "$@"; do
    if ! command -v "${pair%%:*}" >/dev/null 2>&1 && [ ! -x "/usr/sbin/${pair%%:*}" ]; then
      # shellcheck disable=SC2206
      missing+=(${pair#*:})
    fi
  done
  [ "${#missing[@]}" -eq 0 ] && return
  command -v apt-get >/dev/null 2>&1 ||
    die "missing $why: ${missing[*]}" "install them with this system's package manager, then run this again"
  say "Installing $why: ${missing[*]}"
  local sudo=""
  [ "$(id -u)" -eq 0 ] || sudo="sudo"
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_rust() {
  if ! command -v cargo >/dev/null 2>&1 && [ -f "$HOME/.cargo/env" ]; then
    . "$HOME/.cargo/env"
  fi
  if ! command -v cargo >/dev/null 2>&1; then
    say "Installing Rust with rustup"
    need_packages "to install Rust" "curl:curl ca-certificates" "rustup:rustup"
    rustup default stable
  fi
  local have want=1.94
  have="$(rustc --version | awk '{print $2}')"
  [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] ||
    die "Rust $want or newer is needed, and this is $have" "rustup update stable"
}

need_node() {
  need_packages "to build the web console" "node:nodejs npm" "npm:npm"
  local major
  major="$(node --version | sed 's/^v\([0-9]*\).*/\1/')"
  [ "$major" -ge 20 ] || die "Node.js 20 or newer is needed, and this is $(node --version)" "see nodejs.org for packages of your system"
}
