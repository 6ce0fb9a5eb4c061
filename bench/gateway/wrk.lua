-- wrk ... URL -- BODY_FILE KEY_FILE FIRST: POST the body, each request with the next key of the file, from line FIRST on
-- (counted from 0, and round again). With one key in the file the request is made once, and costs wrk nothing.
local keys, following

function init(args)
  local body = assert(io.open(args[1], "rb"))
  wrk.method, wrk.body = "POST", body:read("*a")
  body:close()
  wrk.headers["Content-Type"] = "application/json"
  keys, following = {}, tonumber(args[3])
  for key in io.lines(args[2]) do keys[#keys + 1] = key end
  wrk.headers["Authorization"] = "Bearer " .. keys[1]
  if #keys > 1 then
    request = function()
      wrk.headers["Authorization"] = "Bearer " .. keys[following % #keys + 1]
      following = following + 1
      return wrk.format()
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %f, "bytes": %d, "p50": %f, "p99": %f, "errors": ' ..
    '{"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}\n',
    summary.requests, summary.duration / 1e6, summary.bytes, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
