-- Posts the bodies named by the environment, one after the other, and ends with one line of JSON.
local bodies, at = {}, 0

function init(args)
  local folder, count = os.getenv("BENCH_BODIES"), tonumber(os.getenv("BENCH_COUNT"))
  wrk.method = "POST"
  for pair in string.gmatch(os.getenv("BENCH_HEADERS"), "[^\n]+") do
    local name, value = string.match(pair, "^(.-): (.*)$")
    wrk.headers[name] = value
  end
  for n = 0, count - 1 do
    local file = io.open(folder .. "/" .. n, "rb")
    bodies[#bodies + 1] = wrk.format(nil, nil, nil, file:read("*a"))
    file:close()
  end
end

function request()
  at = at % #bodies + 1
  return bodies[at]
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "p50": %.6f, "p99": %.6f, "failed": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.status + e.connect + e.read + e.write + e.timeout))
end
