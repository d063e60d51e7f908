# How the parts are built. Sourced, after needs.sh, from the root of the repository.

target_dir() { printf '%s' "${CARGO_TARGET_DIR:-$PWD/target}"; }

# The web console, when its sources are newer than what was built of them: the broker embeds it.
build_console() {
  local dist=broker/web/dist/index.html
  if [ -f "$dist" ] && [ -z "$(find broker/web -path broker/web/node_modules -prune -o -path broker/web/dist -prune -o -newer "$dist" -type f -print -quit)" ]; then
    return
  fi
  say "Building the web console"
  (cd broker/web && npm ci --no-audit --no-fund --loglevel=error && npm run --silent build >/dev/null)
}
