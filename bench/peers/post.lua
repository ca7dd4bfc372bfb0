-- Posts the JSON in $PEER_BODY; closes with one line of JSON that closed_loop.py reads. Run: wrk -s bench/peers/post.lua URL
wrk.method = "POST"
wrk.body = os.getenv("PEER_BODY")
wrk.headers["Content-Type"] = "application/json"

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"non_2xx":%d,"socket_errors":%d,"timeouts":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
