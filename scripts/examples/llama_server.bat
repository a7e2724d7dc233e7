@echo off
rem llama.cpp's llama-server on the port that the manager names. An embedding model also needs
rem --embedding, a reranker --reranking. The cards are in CUDA_VISIBLE_DEVICES.
llama-server.exe --host 127.0.0.1 --port %PORT% ^
    --model "%USERPROFILE%\models\qwen2.5-14b-instruct-q4_k_m.gguf" ^
    --n-gpu-layers 99 --parallel 4 --ctx-size 32768 --threads-http 64
