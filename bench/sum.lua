-- The request of the closed-loop benchmark: eight floats as JSON. Run: wrk -s bench/sum.lua URL
wrk.method="POST"
wrk.body='{"inputs":[{"name":"x","shape":[1,8],"datatype":"FP32","data":[0.1,1.2,2.3,3.4,4.5,5.6,6.7,7.8]}]}'
wrk.headers["Content-Type"]="application/json"
