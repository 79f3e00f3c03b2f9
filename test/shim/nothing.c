// SPDX-License-Identifier: MIT
/* A process that never uses CUDA: what the shim costs it is measured with this. */
int main(void)
{
	return 0;
}
