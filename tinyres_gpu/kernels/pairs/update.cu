// Momentum and weight decay for all parameters in one launch.
//
// A network has hundreds of parameters, most of them tiny: a launch for each would cost more than the arithmetic.
// Instead a table says where each parameter lies, and the blocks are distributed over all parameters: block i works on
// parameter tensor_of_block[i] from element first_of_block[i] on. The learning rate is read from memory, so that
// a recorded launch can be replayed with another rate. The two forms of momentum are those of tinyres/optim.py.

constexpr int ELEMENTS = 1024;  // of a block, four for each thread

struct Tensor {
  float* w;
  float* velocity;
  const float* gradient;
  long long size, decays;
};

template <bool NESTEROV>
__global__ void update(const Tensor* tensors, const int* tensor_of_block, const int* first_of_block,
                       const float* learning_rate, float momentum, float weight_decay) {
  const Tensor tensor = tensors[tensor_of_block[blockIdx.x]];
  const int first = first_of_block[blockIdx.x];
  for (int i = first + threadIdx.x; i < min((int)tensor.size, first + ELEMENTS); i += 256) {
    const float w = tensor.w[i], g = tensor.gradient[i] + (tensor.decays ? weight_decay * w : 0);
    const float v = momentum * tensor.velocity[i] + (NESTEROV ? g : *learning_rate * g);
    tensor.velocity[i] = v;
    tensor.w[i] = w - (NESTEROV ? *learning_rate * (g + momentum * v) : v);
  }
}
