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
    need_packages "to install Rust" "curl:curl ca-certificates"
    if apt-cache show rustup >/dev/null 2>&1; then
      need_packages "to install Rust" "rustup:rustup"
      rustup default stable
    else
      # Debian 12 and older Ubuntu have no package of it.
      curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --no-modify-path
      . "$HOME/.cargo/env"
    fi
  fi
  local have want=1.94
  have="$(rustc --version | awk '{print $2}')"
  [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] ||
    die "Rust $want or newer is needed, and this is $have" "rustup update stable"
}

# Node.js of the system, or where that is too old (Debian 12) a newer one from the npm registry, beside the build.
need_node() {
  need_packages "to build the web console" "node:nodejs npm" "npm:npm"
  if [ "$(node_major)" -lt 20 ]; then
    local tools="$PWD/target/tools"
    say "Installing Node.js 22 into target/tools: this system has $(node --version)"
    mkdir -p "$tools"
    npm install --prefix "$tools" --no-audit --no-fund --loglevel=error node@22 ||
      die "Node.js 20 or newer is needed, and this is $(node --version)" "see nodejs.org for packages of your system"
    PATH="$tools/node_modules/.bin:$PATH"
    export PATH
  fi
  [ "$(node_major)" -ge 20 ] || die "Node.js 20 or newer is needed, and this is $(node --version)"
}

node_major() { node --version | sed 's/^v\([0-9]*\).*/\1/'; }
